"""What files call the layers of transformers, family by family: the names of the code that each was published with.

Each family's module has one function, of the number of outputs of each layer, by its path in diffusers: the layers that
are there tell how many blocks a base has. None needs torch.
"""
