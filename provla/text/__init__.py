"""Text encoders: a list of B instructions → `Tokens`.

NoText: no tokens at all.
TaskEmbedding: a learned vector per instruction of the data set.
TextTower: any text model of transformers, pretrained or not.
"""

from provla.core.lazy import lazy

__getattr__ = lazy(
    __name__,
    {
        "NoText": "none",
        "TaskEmbedding": "task_embedding",
        "TextTower": "text_tower",
    },
)
