"""``python -m acl_plugin`` is ``acl-plugin``."""

import sys

from acl_plugin.cli.main import main

sys.exit(main())
