"""Operators that lay out anew what they read, said once for passes and runtimes: every list of operators that hand
values on begins with these.
"""

LAYOUT = ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")
"""All values of the first input, and no others, in another shape or order."""
