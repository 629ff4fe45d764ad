"""ssmsam: annotate a few slices of a volume and get the rest.

Rooms, in the order in which they may import each other:
imaging, encoders, {prompting, fewshot, ssm}, {pretraining, annotation, active}, evaluation, server.
"""

__version__ = "0.1.0"
