"""Parts of the lowering to the form that runtimes of phones compute in INT8."""
