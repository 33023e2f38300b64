"""Files of a tree: formats, commit protocol, locks. Knows bytes and rows; knows no trees and no namespaces."""
