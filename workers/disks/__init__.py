"""How bytes are carried: one file per carrier, each with a Reader, a Writer and a RangeLock."""
