"""Runs made to have an illness, and healthy ones, for the doctor to be judged by."""
