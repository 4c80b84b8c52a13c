"""Problems of any source, checked, split and in order."""
