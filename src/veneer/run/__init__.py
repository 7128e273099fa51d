"""Whole deeds, put together from the packages below; the command line puts them on a screen."""
