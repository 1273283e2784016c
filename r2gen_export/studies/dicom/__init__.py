"""DICOM files to pixels, in a child process with limits; what must not be read is refused."""
