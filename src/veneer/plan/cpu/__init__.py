"""How much a process takes on Linux: the memory model of glibc's allocator and of the CPU's kernels."""
