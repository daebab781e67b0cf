/* Keys, and the list of them. */
'use strict';
