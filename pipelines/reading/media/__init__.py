"""Bytes → arrays: photographs, clips and their windows, arrays, radar events; what is broken is a `BadSample`.

`decode` is the door: it tells media types apart and decodes whole ones. `video`, which reads by `clip`, and `radar` cut
long ones into windows.
"""
