"""The MONAI Label side: everything that knows of the framework, its routes and its clients."""
