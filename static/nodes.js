/* The nodes that are watched. */
'use strict';
