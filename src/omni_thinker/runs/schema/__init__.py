"""What a run writes, key by key: built by those who write, checked by those who read.

A document (`result.json`, `transfer.json`, `plan.json`) carries the version of this schema. The order of the fields is
that of the keys in the file. null stands for what isn't known or doesn't apply: it is None here, but NaN for a mean and
infinity for a standard error. docs/run-directory.md has a table of every class, which a test holds equal to these."""
