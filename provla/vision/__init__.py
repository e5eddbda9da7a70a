"""Vision encoders: pictures (B,T,C,3,h,w) uint8 → `Tokens`.

ConvSmall: a small convolutional network from scratch.
ResNet18: torchvision's ResNet-18.
ImageTower: any image model of transformers, pretrained or not.
SideBySide: several towers, their tokens side by side.
"""

from provla.core.lazy import lazy

__getattr__ = lazy(
    __name__,
    {
        "ConvSmall": "conv_small",
        "ResNet18": "resnet18",
        "ImageTower": "image_tower",
        "SideBySide": "side_by_side",
    },
)
