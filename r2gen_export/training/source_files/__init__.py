"""The files of a source model, read and validated into records of r2gen's own before any library sees them.

`place`: local folders and hub ids. `fields`: typed values of a JSON file. `llama`, `rope`, `swin`, `preprocessor`,
`tokenizer`: what each file says. `weights`: tensors. `loaded`: does the loaded model compute what the files say.
"""
