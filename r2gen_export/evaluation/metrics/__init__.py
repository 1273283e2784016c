"""Metrics of generated text against one reference each, as coco-caption (pycocoevalcap 1.2) computes them.

Texts are strings: BLEU and CIDEr split them at white space, ROUGE-L at every single blank, as the originals do.
"""
