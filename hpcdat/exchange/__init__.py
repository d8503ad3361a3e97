"""Worker-server communication of Algorithm 1: gradients of the workers in, their sum out."""
