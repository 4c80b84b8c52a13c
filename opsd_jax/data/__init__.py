"""Problems: read from any source, checked, split and ordered."""
