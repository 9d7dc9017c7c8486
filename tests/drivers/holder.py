"""Hold files open as other programs of Windows do: a virus scanner or a backup that shares them with nobody, or not their removal."""

SHARES = {"nothing": 0, "reading": 1, "all but removal": 3}


def hold(path, share="nothing"):
    """Open a file, sharing so much of it; return the function that closes it."""
    import _winapi
    import ctypes
    create = ctypes.windll.kernel32.CreateFileW
    create.restype = ctypes.c_void_p
    handle = create(str(path), 0x80000000, SHARES[share], None, 3, 0x80, None)     # to read what is there
    assert handle not in (None, ctypes.c_void_p(-1).value), path
    return lambda: _winapi.CloseHandle(handle)
