"""Studies of what a network sees; see docs/analysis.md. Pure functions on tensors and arrays; the commands feed them images.

``erf``: effective receptive fields. ``shape_bias``: shape against texture. ``kernel_maps``: where the weight of the kernels
lies. ``kernel_size``: what each step in kernel size costs. ``published``: the authors' figures. ``pictures`` and ``report``
show them.
"""
