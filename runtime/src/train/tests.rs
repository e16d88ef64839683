//! Steps of training against PyTorch, and the promises of the trainer.
