"""The child of mobile.py: reads the operators of an `.ort` file, with the types that they are used on.

Its argument is the file. It prints a list of JSON: [domain, version, [operator or operator{types}, ...]], as
the lines of a configuration file of onnxruntime/tools/reduced_build_config_parser.py have them.
"""

import json
import sys


def main() -> None:
    # onnxruntime.tools imports PyTorch where it is installed, which takes seconds and is used for exports alone
    sys.modules["torch"] = None  # type: ignore[assignment]
    from onnxruntime.tools.ort_format_model import OperatorTypeUsageManager, OrtFormatModelProcessor

    found: dict[str, dict[int, set[str]]] = {}
    types = OperatorTypeUsageManager()
    OrtFormatModelProcessor(sys.argv[1], found, types).process()
    listed = [
        (domain, version, [name + (types.get_config_entry(domain, name) or "") for name in sorted(names)])
        for domain, versions in sorted(found.items())
        for version, names in sorted(versions.items())
    ]
    print(json.dumps(listed))


if __name__ == "__main__":
    main()
