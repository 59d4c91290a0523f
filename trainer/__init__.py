"""What training needs beside train.py, model.py and optim.py: options, data, machines, run folders."""
