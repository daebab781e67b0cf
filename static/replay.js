/* The whole node as of an earlier event. */
'use strict';
