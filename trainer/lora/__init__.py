"""LoRA adapters, file formats, metadata, export and inspection.

``pairs``, ``match``, ``files``, ``formats`` and ``inspect`` need torch and safetensors only, so
that a viewer can read a file without PEFT; ``adapter`` trains with PEFT.
"""
