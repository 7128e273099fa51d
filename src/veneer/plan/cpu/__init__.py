"""The memory of a process on Linux: a model of glibc's allocator and of the CPU's kernels.

It is here because a plan must say what the process takes, which on the CPU is up to a sixth more than its tensors. It
is not meant to grow: on other systems the plan's figure for the process is only an estimate.
"""
