"""What is dear to load and shared by many calls: models, indices, mapped files. Loaded when first used, within a limit of memory."""
