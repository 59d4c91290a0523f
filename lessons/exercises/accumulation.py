"""
Exercise: a batch in pieces.

A large batch may not fit into memory. Then it comes in micro-batches of equal size, one after another, and
their gradients are added up. The step and the log must not show into how many pieces the batch was cut.

loss            a function. loss(x) is the mean loss of the micro-batch x, a tensor of one number
micro_batches   a list of micro-batches of equal size

Leave the gradient of the whole batch's mean loss in the weights, and return the number to log, which is
the whole batch's mean loss. y.backward() adds the gradient of y to what the weights already hold, which
is nothing at first. It also frees the memory that y took, so call it before the next loss.

Replace the dots by as many lines as you need. Then run:

    python -m lessons check lessons/exercises/accumulation.py

Hint: the mean over the batch is the mean of the means. y.item() is y as a plain number.
"""


def accumulation(loss, micro_batches):
    logged = ...
    return logged
