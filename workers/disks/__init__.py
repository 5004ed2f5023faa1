"""How bytes are carried: file, nbd, hotadd and memory; what they have in common is in `carrier`."""
