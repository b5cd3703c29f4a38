"""The program that passes work on: an fx graph, its inputs, and what is known of it."""
