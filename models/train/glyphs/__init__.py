"""The scripts that made the models `glyphs-…` and their classifier: letters and digits of free fonts.

CLASSES are the characters, in the order of the class numbers: digits first, so that the class number of a digit is the digit.
"""

from __future__ import annotations

import string

CLASSES = string.digits + string.ascii_uppercase + string.ascii_lowercase
