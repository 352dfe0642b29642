"""What is learned: tasks, their problems and their splits."""
