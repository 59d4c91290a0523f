"""Lessons: exercises with a grader, and a museum of bugs."""
