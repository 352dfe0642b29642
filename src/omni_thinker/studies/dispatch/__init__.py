"""Which unit of a study is worked on next, and by whom."""
