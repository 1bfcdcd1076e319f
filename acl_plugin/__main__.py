"""Run ``acl-plugin`` as ``python -m acl_plugin``."""

import sys

from acl_plugin.cli.main import main

sys.exit(main())
