"""The machinery of passes: what a pass is, its options, report and services, the registry, the contract."""
