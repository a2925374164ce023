"""The search: strategies behind one interface, and the portfolio ``discover`` that runs them on worker processes."""
