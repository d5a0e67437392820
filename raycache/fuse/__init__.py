"""The FUSE shim: a dataset as a directory of the operating system, without libfuse and without Ray."""
