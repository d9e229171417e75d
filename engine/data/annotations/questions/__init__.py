"""The files of tasks with questions: a module for the form that each task's files have."""
