"""Studies with ResNet-20 on the whole of CIFAR-10, for a GPU, and the program that continues them for some minutes."""
