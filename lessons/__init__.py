"""Lessons: toys that show what update rules do, exercises with a grader, and a museum of bugs."""
