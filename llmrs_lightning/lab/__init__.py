"""The lab: fuse, compare and repeat runs from what their directories hold."""
