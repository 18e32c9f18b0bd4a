"""Reading what is searched and what it is judged by; splitting long passages."""
