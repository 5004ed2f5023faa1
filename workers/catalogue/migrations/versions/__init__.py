"""One file per version of the tables. There is no way back: put back a copy of the catalogue instead."""
