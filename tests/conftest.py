"""Where CI is set everything must be tried: what is missing there is a failure, elsewhere a reason to skip."""

import os

# Under another name for the tests: pytest itself compares unequal bytes line by line where it finds CI, which takes
# more than five minutes for a disk of 8 MiB.
if os.environ.pop("CI", None):
    os.environ["EVERYTHING"] = "true"
