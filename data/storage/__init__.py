"""The user's cache folder, and copies of data sets: archives unpacked into it, large files copied to a node's disk."""
