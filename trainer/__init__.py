"""What training needs besides the lesson: options, data, machines, run folders, plans."""
