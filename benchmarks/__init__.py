"""Measurements. Each module's `run()` returns figures; ratios are between things timed in one run on one machine.

`make bench` runs those that need no root; `make bench-fuse` the mount beside JuiceFS, rclone (dependency group `bench`)
and s3fs (Debian package; random reads need the package fio). What is not installed is skipped by name.
"""
