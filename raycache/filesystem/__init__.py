"""Datasets as an fsspec filesystem (`raycache://dataset/path`) and as a pyarrow filesystem that maps memory."""

from raycache.filesystem.arrow import RaycacheHandler, arrow_filesystem
from raycache.filesystem.file import RaycacheFile
from raycache.filesystem.fs import RaycacheFileSystem

__all__ = ["RaycacheFile", "RaycacheFileSystem", "RaycacheHandler", "arrow_filesystem"]
