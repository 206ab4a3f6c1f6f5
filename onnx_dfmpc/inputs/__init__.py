"""What a model is run on: the user's data, checked against its inputs, or seeded synthetic inputs.

specs        what a model takes: names, dtypes, shapes, batch
stored       rows of .npz and .npy files
dataset      arrays of a source by input name, and labels, checked against the specs
images       folders of images, preprocessed (the only module that imports Pillow)
sources      from whatever the user names to a dataset; loader scripts
samples      a dataset, batch by batch
pictures     drawings with the statistics of photographs
synthetic    samples without data
data         from the recipe's settings to samples
"""
